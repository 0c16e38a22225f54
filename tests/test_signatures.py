"""What users call takes the arguments that it always took, in the order in which it took them."""

import importlib
import inspect

import pytest

# What can be called -> its arguments as they were first published: by name, in order. More may follow them.
SIGNATURES = {
    "BertTokenizer": (
        "vocab_file do_lower_case unk_token sep_token pad_token cls_token mask_token tokenize_chinese_chars "
        "strip_accents vocab tokenizer_file model_max_length padding_side truncation_side "
        "clean_up_tokenization_spaces extra_special_tokens added_tokens_decoder split_special_tokens"
    ),
    "BertTokenizer.__call__": (
        "text text_pair add_special_tokens padding truncation max_length stride is_split_into_words "
        "pad_to_multiple_of padding_side return_tensors return_token_type_ids return_attention_mask "
        "return_overflowing_tokens return_special_tokens_mask return_offsets_mapping return_length verbose "
        "split_special_tokens"
    ),
    "BertTokenizer.add_special_tokens": "special_tokens_dict",
    "BertTokenizer.add_tokens": "new_tokens special_tokens",
    "BertTokenizer.batch_decode": "sequences skip_special_tokens clean_up_tokenization_spaces",
    "BertTokenizer.batch_encode_plus": "batch_text_or_text_pairs",
    "BertTokenizer.build_inputs_with_special_tokens": "token_ids_0 token_ids_1",
    "BertTokenizer.convert_ids_to_tokens": "ids skip_special_tokens",
    "BertTokenizer.convert_tokens_to_ids": "tokens",
    "BertTokenizer.convert_tokens_to_string": "tokens",
    "BertTokenizer.create_token_type_ids_from_sequences": "token_ids_0 token_ids_1",
    "BertTokenizer.decode": "token_ids skip_special_tokens clean_up_tokenization_spaces",
    "BertTokenizer.encode": "text text_pair",
    "BertTokenizer.encode_plus": "text text_pair",
    "BertTokenizer.files_to_save": "processor_class",
    "BertTokenizer.from_pretrained": "pretrained_model_name_or_path",
    "BertTokenizer.get_special_tokens_mask": "token_ids_0 token_ids_1 already_has_special_tokens",
    "BertTokenizer.num_special_tokens_to_add": "pair",
    "BertTokenizer.pad": (
        "encoded_inputs padding max_length pad_to_multiple_of padding_side return_attention_mask return_tensors verbose"
    ),
    "BertTokenizer.save_pretrained": "save_directory",
    "BertTokenizer.tokenize": "text pair add_special_tokens",
    "Engine": "model processor max_tokens dtype device cuda_graphs workers max_wait_ms top",
    "Engine.answer": "images questions on_error progress",
    "Engine.close": "finish",
    "Engine.fill": "images texts on_error progress",
    "Engine.logits": "images texts on_error progress",
    "Engine.score": "images texts on_error progress",
    "Engine.submit": "image question kind",
    "Layout": (
        "cu_seqlens text_row word_row cls_row patch_index patch_row grid text_count patch_count grid_size "
        "has_cls total_tokens max_seqlen max_patches copies"
    ),
    "Layout.build": "attention_mask pixel_mask patch_mask grid_size max_patches seed image_index has_cls grid checks",
    "Layout.sharing": "leaders patch_counts",
    "Layout.unpack": "tokens",
    "Layout.unpack_attention": "rows",
    "Layout.unpack_text": "tokens",
    "Layout.unpack_words": "values",
    "PackedPixels": "data sizes mean std rescale_factor picture",
    "PackedPixels.grid_size": "patch",
    "PackedPixels.grids": "patch",
    "PackedPixels.leaders": "slots",
    "PackedPixels.pair_grid": "patch",
    "PackedPixels.to": "device non_blocking",
    "ViltConfig": (
        "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size "
        "num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
        "attention_probs_dropout_prob initializer_range layer_norm_eps image_size patch_size num_channels "
        "qkv_bias max_image_length tie_word_embeddings num_images encoder_layer_norm_eps pad_token_id "
        "id2label label2id num_labels output_attentions output_hidden_states return_dict"
    ),
    "ViltConfig.from_dict": "config",
    "ViltConfig.from_pretrained": "name_or_path",
    "ViltConfig.save_pretrained": "directory",
    "ViltForImageAndTextRetrieval": "config",
    "ViltForImageAndTextRetrieval.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "labels output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltForImageAndTextRetrieval.score": "rows",
    "ViltForImageAndTextRetrieval.output_class": "loss logits hidden_states attentions",
    "ViltForImageTextMatching": "config",
    "ViltForImageTextMatching.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "labels output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltForImageTextMatching.score": "rows",
    "ViltForImageTextMatching.output_class": "loss logits hidden_states attentions",
    "ViltForImagesAndTextClassification": "config",
    "ViltForImagesAndTextClassification.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "labels output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltForImagesAndTextClassification.score": "rows",
    "ViltForImagesAndTextClassification.output_class": "loss logits hidden_states attentions",
    "ViltForMaskedLM": "config",
    "ViltForMaskedLM.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "labels output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltForMaskedLM.score": "rows",
    "ViltForMaskedLM.output_class": "loss logits hidden_states attentions",
    "ViltForQuestionAnswering": "config",
    "ViltForQuestionAnswering.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "labels output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltForQuestionAnswering.score": "rows",
    "ViltForQuestionAnswering.output_class": "loss logits hidden_states attentions",
    "ViltForTokenClassification": "config",
    "ViltForTokenClassification.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "labels output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltForTokenClassification.score": "rows",
    "ViltForTokenClassification.output_class": "loss logits hidden_states attentions",
    "ViltImageProcessor": (
        "do_resize size size_divisor resample do_rescale rescale_factor do_normalize image_mean image_std do_pad"
    ),
    "ViltImageProcessor.__call__": "images",
    "ViltImageProcessor.files_to_save": "save_directory",
    "ViltImageProcessor.from_dict": "image_processor_dict",
    "ViltImageProcessor.from_pretrained": "pretrained_model_name_or_path",
    "ViltImageProcessor.pack": "images device picture input_data_format",
    "ViltImageProcessor.preprocess": (
        "images do_resize size size_divisor resample do_rescale rescale_factor do_normalize image_mean "
        "image_std do_pad return_tensors data_format input_data_format"
    ),
    "ViltImageProcessor.save_pretrained": "save_directory",
    "ViltModel": "config add_pooling_layer",
    "ViltModel.config_class": (
        "vocab_size type_vocab_size modality_type_vocab_size max_position_embeddings hidden_size "
        "num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
        "attention_probs_dropout_prob initializer_range layer_norm_eps image_size patch_size num_channels "
        "qkv_bias max_image_length tie_word_embeddings num_images encoder_layer_norm_eps pad_token_id "
        "id2label label2id num_labels output_attentions output_hidden_states return_dict"
    ),
    "ViltModel.encode": "inputs want_attentions want_hidden_states first_rows_only checks",
    "ViltModel.forward": (
        "input_ids attention_mask token_type_ids pixel_values pixel_mask head_mask inputs_embeds image_embeds "
        "image_token_type_idx output_attentions output_hidden_states return_dict patch_mask seed image_index"
    ),
    "ViltModel.from_pretrained": (
        "name_or_path config dtype device strict revision cache_dir token local_files_only subfolder force_download "
        "state_dict use_safetensors variant key_mapping ignore_mismatched_sizes output_loading_info device_map "
        "attn_implementation"
    ),
    "ViltModel.get_memory_footprint": "return_buffers",
    "ViltModel.gradient_checkpointing_enable": "gradient_checkpointing_kwargs every_n_layers offload",
    "ViltModel.num_parameters": "only_trainable exclude_embeddings",
    "ViltModel.push_to_hub": (
        "repo_id commit_message commit_description private token revision create_pr tags max_shard_size "
        "safe_serialization variant"
    ),
    "ViltModel.prune_heads": "heads_to_prune",
    "ViltModel.resize_token_embeddings": "new_num_tokens pad_to_multiple_of mean_resizing",
    "ViltModel.save_pretrained": (
        "directory max_shard_size safe_serialization state_dict variant is_main_process save_function push_to_hub "
        "repo_id token"
    ),
    "ViltProcessor": "image_processor tokenizer device feature_extractor",
    "ViltProcessor.__call__": (
        "images text add_special_tokens padding truncation max_length stride pad_to_multiple_of "
        "return_token_type_ids return_attention_mask return_overflowing_tokens return_special_tokens_mask "
        "return_offsets_mapping return_length verbose return_tensors device picture"
    ),
    "ViltProcessor.from_pretrained": "pretrained_model_name_or_path",
    "ViltProcessor.save_pretrained": "save_directory",
    "VisualBertConfig": (
        "vocab_size hidden_size visual_embedding_dim num_hidden_layers num_attention_heads intermediate_size "
        "hidden_act hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size "
        "initializer_range layer_norm_eps bypass_transformer special_visual_initialize pad_token_id bos_token_id "
        "eos_token_id tie_word_embeddings id2label label2id num_labels output_attentions output_hidden_states "
        "return_dict"
    ),
    "VisualBertForMultipleChoice": "config",
    "VisualBertForMultipleChoice.forward": (
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds "
        "visual_attention_mask visual_token_type_ids image_text_alignment output_attentions output_hidden_states "
        "return_dict labels"
    ),
    "VisualBertForMultipleChoice.output_class": "loss logits hidden_states attentions",
    "VisualBertForPreTraining": "config",
    "VisualBertForPreTraining.forward": (
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds "
        "visual_attention_mask visual_token_type_ids image_text_alignment output_attentions output_hidden_states "
        "return_dict labels sentence_image_labels"
    ),
    "VisualBertForPreTraining.output_class": "loss prediction_logits seq_relationship_logits hidden_states attentions",
    "VisualBertForQuestionAnswering": "config",
    "VisualBertForQuestionAnswering.forward": (
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds "
        "visual_attention_mask visual_token_type_ids image_text_alignment output_attentions output_hidden_states "
        "return_dict labels"
    ),
    "VisualBertForQuestionAnswering.output_class": "loss logits hidden_states attentions",
    "VisualBertForRegionToPhraseAlignment": "config",
    "VisualBertForRegionToPhraseAlignment.forward": (
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds "
        "visual_attention_mask visual_token_type_ids image_text_alignment output_attentions output_hidden_states "
        "return_dict region_to_phrase_position labels"
    ),
    "VisualBertForRegionToPhraseAlignment.output_class": "loss logits hidden_states attentions",
    "VisualBertForVisualReasoning": "config",
    "VisualBertForVisualReasoning.forward": (
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds "
        "visual_attention_mask visual_token_type_ids image_text_alignment output_attentions output_hidden_states "
        "return_dict labels"
    ),
    "VisualBertForVisualReasoning.output_class": "loss logits hidden_states attentions",
    "VisualBertModel": "config add_pooling_layer",
    "VisualBertModel.forward": (
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds visual_embeds "
        "visual_attention_mask visual_token_type_ids image_text_alignment output_attentions output_hidden_states "
        "return_dict"
    ),
    "VisualBertModel.encode": "inputs want_attentions want_hidden_states row_read checks",
    "VisualBertProcessor": "tokenizer",
    "VisualBertProcessor.__call__": "text regions text_pair padding truncation max_length return_tensors",
    "read_regions": "path name",
    "backend": "default",
    "checkpoints.load_weights": "model name_or_path strict revision cache_dir token local_files_only",
    "checkpoints.save_weights": (
        "model directory max_shard_size safe_serialization companions state_dict variant save_function"
    ),
    "checkpoints.stored_dtype": "name_or_path",
}


def _find(name: str) -> object:
    home, *rest = name.split(".")
    found = (
        importlib.import_module("vilt_fast.checkpoints")
        if home == "checkpoints"
        else importlib.import_module("vilt_fast")
    )
    for part in rest if home == "checkpoints" else [home, *rest]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_keep_their_names_and_order(name: str) -> None:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(_find(name)).parameters.values()
    names = [one.name for one in parameters if one.kind not in variadic and one.name != "self"]
    wanted = SIGNATURES[name].split()
    assert names[: len(wanted)] == wanted
